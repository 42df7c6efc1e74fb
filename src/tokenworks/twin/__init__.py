"""The twin: the same floors on a virtual clock. It will own scenarios and replay, and no policy of its own."""
