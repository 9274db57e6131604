//! Boots real nodes and does real work on them.
