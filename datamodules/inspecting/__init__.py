"""What shards hold, and whether it is whole: ``effnet shards verify`` and ``info``."""
