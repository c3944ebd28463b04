//! Sockets behind one completion-shaped interface.
