"""The web page: static files and the one handler that serves them; what they show comes from the public API alone."""
