"""What both dialects share: the state of a worker, bodies, limits. No dialect's codes or sentences."""
