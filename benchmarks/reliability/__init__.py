"""What is put in the way of countvae, and what becomes of it."""
