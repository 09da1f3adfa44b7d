"""What a peer keeps on disk, whole after `kill -9` at any instant, and where peers of one machine meet."""
