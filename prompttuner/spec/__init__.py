"""prompttuner.spec"""
