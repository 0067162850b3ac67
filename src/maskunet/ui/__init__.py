"""The page of `maskunet ui`: `studio` computes, `page` shows, `serve` answers a browser."""
