"""How the members of a job find each other, agree on who they are, and change their number."""
