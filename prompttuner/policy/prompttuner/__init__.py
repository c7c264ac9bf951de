"""The policy of prompttuner, one planning step a module."""
