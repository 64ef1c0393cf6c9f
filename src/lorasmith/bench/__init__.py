"""How fast lorasmith is on this machine, beside the usual scripts."""
