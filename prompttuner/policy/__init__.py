"""prompttuner.policy"""
