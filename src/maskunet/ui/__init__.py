"""The page of `maskunet ui`: `backend` computes, `page` and its tabs show, `serve` answers browsers."""
