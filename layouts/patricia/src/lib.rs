//! patricia
