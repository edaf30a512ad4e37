"""What people take home from a fit, measured: a script an answer."""
