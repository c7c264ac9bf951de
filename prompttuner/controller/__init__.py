"""The control loop that runs live: requests, ownership, and the tick (observe, plan, act)."""
