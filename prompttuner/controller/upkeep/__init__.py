"""Upkeep: deadlines are told, old things removed, figures written, the banks' index kept."""
