"""The console: the operator's window. It will own pages and read the same API as the CLI; it may not touch a store."""
