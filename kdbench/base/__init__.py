"""What every room rests on: digests, the store of products, random streams, files, endings."""
