//! `jobs._native`: the Rust crates as one Python extension. Converts types, releases the GIL and maps
//! errors; decides nothing.

mod blobs;
mod errors;
mod failpoint;
mod log;
mod net;
mod sandbox;
mod sim;
mod sql;
mod store;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        super::errors::register(module)?;
        super::failpoint::register(module)?;
        super::log::register(module)?;
        super::sim::register(module)?;
        super::sql::register(module)?;
        super::store::register(module)?;
        super::sandbox::register(module)?;
        super::net::register(module)?;
        super::blobs::register(module)
    }
}
