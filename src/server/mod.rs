//! Workers, sessions, applications and the hub.
