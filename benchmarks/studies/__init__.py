"""The paper's tables, reproduced in kind on the bundled model."""
