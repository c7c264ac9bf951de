"""prompttuner.controller"""
