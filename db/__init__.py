"""prompttuner.db"""
