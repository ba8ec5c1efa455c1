//! Python face of `jobs-sql`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jobs_kv::KeyValue;
use jobs_sql::parse::{ColumnDefinition, Parsed, What, parse};
use jobs_sql::{LeaseEnds, Snapshot, TABLES, Table, export, record_fields, table, user_table};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyDict, PyTuple};

use crate::errors::{sql_error, store_error};

type Scanned<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, u64);

/// One revision of a store's directory, for queries.
#[pyclass(module = "jobs._native", frozen)]
struct SqlSnapshot {
    inner: Arc<Snapshot>,
}

#[pymethods]
impl SqlSnapshot {
    #[new]
    #[pyo3(signature = (directory, *, revision = 0))]
    fn new(py: Python<'_>, directory: &str, revision: u64) -> PyResult<Self> {
        let opened = py.detach(|| Snapshot::open(Path::new(directory), revision));
        Ok(Self {
            inner: Arc::new(opened.map_err(store_error)?),
        })
    }

    #[getter]
    fn revision(&self) -> u64 {
        self.inner.revision()
    }

    #[getter]
    fn bytes_read(&self) -> u64 {
        self.inner.bytes_read()
    }

    #[getter]
    fn rows_read(&self) -> u64 {
        self.inner.rows_read()
    }

    #[getter]
    fn rows_expected(&self) -> u64 {
        self.inner.rows_expected()
    }

    /// The value of any key.
    fn get<'py>(&self, py: Python<'py>, key: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let found = py.detach(|| self.inner.get(key)).map_err(store_error)?;
        Ok(found.map(|kv| PyBytes::new(py, &kv.value)))
    }

    /// The first keys with a prefix, their values and revisions.
    #[pyo3(signature = (prefix, *, limit))]
    fn scan<'py>(&self, py: Python<'py>, prefix: &[u8], limit: usize) -> PyResult<Vec<Scanned<'py>>> {
        let found = py.detach(|| self.inner.scan(prefix, limit)).map_err(store_error)?;
        let row = |kv: &KeyValue| (PyBytes::new(py, &kv.key), PyBytes::new(py, &kv.value), kv.mod_revision);
        Ok(found.iter().map(row).collect())
    }

    #[pyo3(signature = (name, *, owner))]
    fn table(&self, name: &str, owner: Option<u32>) -> PyResult<SqlTable> {
        let found = table(&self.inner, name, owner).ok_or_else(|| {
            PyValueError::new_err(format!("there is no table {name:?}; there are {}", TABLES.join(", ")))
        })?;
        Ok(SqlTable { inner: Arc::new(found) })
    }

    /// Every user may read the values under `/data/`, as by the API; the owner is there for what may come to be.
    #[pyo3(signature = (definition_json, *, owner))]
    fn user_table(&self, definition_json: &str, owner: Option<u32>) -> PyResult<SqlTable> {
        let _ = owner;
        let found = user_table(&self.inner, definition_json).map_err(PyValueError::new_err)?;
        Ok(SqlTable { inner: Arc::new(found) })
    }

    /// When leases run out, as it was known at a moment.
    fn know_leases(&self, at_ms: i64, ends_ms: HashMap<u64, i64>) {
        self.inner.know_leases(LeaseEnds { at_ms, ends_ms });
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

/// A table of a snapshot.
#[pyclass(module = "jobs._native", frozen)]
struct SqlTable {
    inner: Arc<Table>,
}

/// An Arrow schema for who asks by its interface of capsules.
#[pyclass(module = "jobs._native", frozen)]
struct SqlSchema {
    inner: Arc<Table>,
}

#[pymethods]
impl SqlTable {
    #[getter]
    fn schema(&self) -> SqlSchema {
        SqlSchema {
            inner: Arc::clone(&self.inner),
        }
    }

    fn __datafusion_table_provider__<'py>(
        &self,
        py: Python<'py>,
        session: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = session;
        PyCapsule::new_with_value(py, export(Arc::clone(&self.inner)), c"datafusion_table_provider")
    }
}

#[pymethods]
impl SqlSchema {
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = self
            .inner
            .c_schema()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }
}

/// The statements of a text: what each is, and its parts.
#[pyfunction]
fn sql_parse<'py>(py: Python<'py>, text: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let parsed = py.detach(|| parse(text)).map_err(|error| sql_error(py, &error))?;
    parsed.iter().map(|statement| statement_of(py, statement)).collect()
}

fn statement_of<'py>(py: Python<'py>, statement: &Parsed) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("text", &statement.text)?;
    dict.set_item("tables", &statement.tables)?;
    dict.set_item("table_functions", &statement.table_functions)?;
    dict.set_item("parameters", &statement.parameters)?;
    let kind = match &statement.what {
        What::Query => "query",
        What::Show => "show",
        What::Other(what) => {
            dict.set_item("what", what)?;
            "other"
        }
        What::Explain { analyze, inner } => {
            dict.set_item("analyze", analyze)?;
            dict.set_item("inner", statement_of(py, inner)?)?;
            "explain"
        }
        What::Insert {
            target,
            columns,
            source,
            overwrite,
        } => {
            dict.set_item("target", target)?;
            dict.set_item("columns", columns)?;
            dict.set_item("source", source)?;
            dict.set_item("overwrite", overwrite)?;
            "insert"
        }
        What::CreateTableAs {
            target,
            query,
            or_replace,
            if_not_exists,
        } => {
            dict.set_item("target", target)?;
            dict.set_item("query", query)?;
            dict.set_item("or_replace", or_replace)?;
            dict.set_item("if_not_exists", if_not_exists)?;
            "create_table_as"
        }
        What::CreateExternalTable {
            name,
            columns,
            format,
            locations,
            options,
            partition_columns,
            or_replace,
            if_not_exists,
        } => {
            dict.set_item("name", name)?;
            let columns: Vec<_> = columns
                .iter()
                .map(|column| column_of(py, column))
                .collect::<PyResult<_>>()?;
            dict.set_item("columns", columns)?;
            dict.set_item("format", format)?;
            dict.set_item("locations", locations)?;
            dict.set_item("options", options.iter().cloned().collect::<HashMap<_, _>>())?;
            dict.set_item("partition_columns", partition_columns)?;
            dict.set_item("or_replace", or_replace)?;
            dict.set_item("if_not_exists", if_not_exists)?;
            "create_external_table"
        }
        What::DropTable { name, if_exists } => {
            dict.set_item("name", name)?;
            dict.set_item("if_exists", if_exists)?;
            "drop_table"
        }
    };
    dict.set_item("kind", kind)?;
    Ok(dict)
}

fn column_of<'py>(py: Python<'py>, column: &ColumnDefinition) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &column.name)?;
    dict.set_item("type", &column.sql_type)?;
    dict.set_item("nullable", column.nullable)?;
    Ok(dict)
}

/// The fields of the records behind each table, and those of them that have no column.
#[pyfunction]
fn sql_record_fields() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    let of = |(table, fields, left_out): (&'static str, &'static [&'static str], &'static [&'static str])| {
        (table, fields.to_vec(), left_out.to_vec())
    };
    record_fields().into_iter().map(of).collect()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SQL_TABLES", PyTuple::new(module.py(), TABLES)?)?;
    module.add_function(wrap_pyfunction!(sql_parse, module)?)?;
    module.add_function(wrap_pyfunction!(sql_record_fields, module)?)?;
    module.add_class::<SqlSnapshot>()?;
    module.add_class::<SqlTable>()?;
    module.add_class::<SqlSchema>()
}
