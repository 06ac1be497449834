"""Nothing gets in, nothing gets out: what strangers' files and names cannot do."""
