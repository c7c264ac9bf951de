"""prompttuner.cli"""
