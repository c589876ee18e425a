"""S3 buckets as a source."""
