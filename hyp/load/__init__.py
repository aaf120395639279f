"""What measured traffic is made of: the test frame and its check, the open-loop schedule, the latency histogram."""
