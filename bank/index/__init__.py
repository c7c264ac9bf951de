"""The index of a shelf: features, clusters, and what trials found."""
