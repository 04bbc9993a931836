"""Connections: of a boto3 client, kept by one worker; of a database, counted over all workers."""
