"""The methods of `Store`, by what they are about: one part a file. Only `station.store.store` puts them together."""
