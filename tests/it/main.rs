//! Black-box tests by role, in one binary so that the crate is linked once.
