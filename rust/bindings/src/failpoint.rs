//! Python face of `jobs-failpoint`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(failpoint, module)?)?;
    module.add_function(wrap_pyfunction!(failpoints, module)?)?;
    module.add_function(wrap_pyfunction!(arm_failpoints, module)?)
}

#[pyfunction]
fn failpoint(py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<()> {
    // Almost always all there is to do.
    if !jobs_failpoint::is_armed() {
        return Ok(());
    }
    let name = name.to_str()?;
    Ok(py.detach(|| jobs_failpoint::pass_named(name))?)
}

#[pyfunction]
fn failpoints() -> Vec<(&'static str, bool)> {
    jobs_failpoint::all().to_vec()
}

#[pyfunction]
fn arm_failpoints() -> PyResult<Option<String>> {
    jobs_failpoint::arm_from_environment().map_err(PyValueError::new_err)
}
