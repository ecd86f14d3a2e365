"""Where shards are kept: paths, servers, and the cache of a node."""
