"""prompttuner.config"""
