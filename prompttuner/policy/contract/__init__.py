"""The contract of every policy: the snapshot it sees and the plan it makes."""
