"""VirTues: the network, its published key schemes, and the encoder that reads any markers."""
