"""The frame of all commands: root command, options, output."""
