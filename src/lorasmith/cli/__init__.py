"""The command line: a table of commands, one small file each."""
