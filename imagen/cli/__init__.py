"""The commands: each module here parses and checks its arguments before it imports anything heavy."""
