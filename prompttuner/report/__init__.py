"""prompttuner.report"""
