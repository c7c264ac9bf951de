"""What warm agents without a job do for the bank."""
