//! Every flag and limit: its unit, its default and the reason for it.
