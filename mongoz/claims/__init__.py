"""Claims: a process records which of its receivers have not ended. If it dies, a dispatcher runs them."""
