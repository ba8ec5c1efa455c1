//! What the statements of a text are, by DataFusion's parser: enough to decide which of them may run, and how.
//!
//! The text is hostile. Nesting is bounded while it is parsed; chains of operators (`1+1+…`) nest without that bound, so
//! what is parsed is looked at, and let go of, on a stack that is large enough for every text, and refused beyond a depth
//! that the engine's own threads can follow.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use datafusion_sql::parser::{
    CopyToSource, CreateExternalTable, DFParserBuilder, ExplainStatement, Statement as DfStatement,
};
use datafusion_sql::sqlparser::ast::{
    ColumnOption, Expr, Ident, Insert, ObjectName, ObjectType, Query, Select, SetExpr, Statement as SqlStatement,
    TableFactor, TableObject, Value, Visit, Visitor,
};
use datafusion_sql::sqlparser::dialect::GenericDialect;
use datafusion_sql::sqlparser::keywords::Keyword;
use datafusion_sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// Longest text.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Most statements of a text.
pub const MAX_STATEMENTS: usize = 1_000;
/// Deepest nesting of expressions and queries; chains of operators nest, one level for each of them.
pub const MAX_DEPTH: usize = 256;
/// Tables that one SELECT may join: planning takes time with their square and more.
pub const MAX_JOINS: usize = 64;
/// Nesting by brackets and the like that the parser follows, as the engine's own does.
const PARSER_DEPTH: usize = 50;
/// Stack for a text, and for each byte of it: two bytes are a level of nesting.
const STACK_BYTES: usize = 8 << 20;
const STACK_BYTES_PER_BYTE: usize = 1 << 10;

/// Why a text is refused, and where in it: 0 where that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// In words.
    pub message: String,
    /// From 1 on.
    pub line: u64,
    /// From 1 on.
    pub column: u64,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Its part of the text.
    pub text: String,
    /// What it is.
    pub what: What,
    /// Relations that it names, those included that it defines itself.
    pub tables: Vec<String>,
    /// Functions in the place of tables.
    pub table_functions: Vec<String>,
    /// Placeholders, such as `$1`.
    pub parameters: Vec<String>,
}

/// A column of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Its name.
    pub name: String,
    /// Its type as SQL has it.
    pub sql_type: String,
    /// Whether it may be NULL.
    pub nullable: bool,
}

/// Kinds of statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A query.
    Query,
    /// How a statement would be carried out.
    Explain {
        /// It is carried out to tell.
        analyze: bool,
        /// The statement.
        inner: Box<Parsed>,
    },
    /// What there is.
    Show,
    /// Rows for a table.
    Insert {
        /// The table.
        target: String,
        /// Its columns that are given, if they are named.
        columns: Vec<String>,
        /// The query whose rows they are.
        source: String,
        /// In place of those that are there.
        overwrite: bool,
    },
    /// A table of the rows of a query.
    CreateTableAs {
        /// The table.
        target: String,
        /// The query.
        query: String,
        /// In place of one that is there.
        or_replace: bool,
        /// Unless there is one.
        if_not_exists: bool,
    },
    /// A table over what is stored.
    CreateExternalTable {
        /// The table.
        name: String,
        /// Its columns.
        columns: Vec<ColumnDefinition>,
        /// In capital letters.
        format: String,
        /// Where it is stored.
        locations: Vec<String>,
        /// Settings.
        options: Vec<(String, String)>,
        /// Columns that places have in their names.
        partition_columns: Vec<String>,
        /// In place of one that is there.
        or_replace: bool,
        /// Unless there is one.
        if_not_exists: bool,
    },
    /// A table is to go.
    DropTable {
        /// The table.
        name: String,
        /// If there is one.
        if_exists: bool,
    },
    /// Anything else, by its first words.
    Other(String),
}

fn error(message: impl Into<String>, line: u64, column: u64) -> SqlError {
    SqlError {
        message: message.into(),
        line,
        column,
    }
}

/// Return the statements of a text.
///
/// # Errors
/// [`SqlError`].
pub fn parse(text: &str) -> Result<Vec<Parsed>, SqlError> {
    if text.len() > MAX_TEXT_BYTES {
        let message = format!("the text has {} bytes; the limit is {MAX_TEXT_BYTES}", text.len());
        return Err(error(message, 0, 0));
    }
    let stack_bytes = STACK_BYTES + STACK_BYTES_PER_BYTE * text.len();
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new()
            .name("sql-parser".into())
            .stack_size(stack_bytes)
            .spawn_scoped(scope, || parse_here(text))
            .map_err(|problem| error(format!("no thread to parse with: {problem}"), 0, 0))?;
        parser.join().unwrap_or_else(|_| Err(error("the parser failed", 0, 0)))
    })
}

fn parse_here(text: &str) -> Result<Vec<Parsed>, SqlError> {
    let dialect = GenericDialect {};
    let tokens = Tokenizer::new(&dialect, text)
        .tokenize_with_location()
        .map_err(|problem| located(&problem.to_string()))?;
    let mut places = Places::of(text);
    let mut found = Vec::new();
    for part in tokens.split(|token| token.token == Token::SemiColon) {
        let means = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_) | Token::EOF);
        let (Some(first), Some(last)) = (part.iter().find(means), part.iter().rfind(means)) else {
            continue;
        };
        if found.len() == MAX_STATEMENTS {
            let message = format!("there are more than {MAX_STATEMENTS} statements");
            return Err(error(message, first.span.start.line, first.span.start.column));
        }
        check_explains(part)?;
        let statement = parse_part(part.to_vec()).map_err(|problem| match problem {
            SqlError { line: 0, message, .. } if message.ends_with("found: EOF") => {
                error(message, last.span.end.line, last.span.end.column)
            }
            other => other,
        })?;
        let start = places.offset(first.span.start.line, first.span.start.column);
        let end = places.offset(last.span.end.line, last.span.end.column);
        let text = text.get(start..end).unwrap_or_default();
        found.push(describe(&statement, text)?);
    }
    Ok(found)
}

/// EXPLAIN of EXPLAIN is what the parser follows without a bound.
fn check_explains(part: &[TokenWithSpan]) -> Result<(), SqlError> {
    let is_explain = |token: &&TokenWithSpan| match &token.token {
        Token::Word(word) => matches!(word.keyword, Keyword::EXPLAIN | Keyword::DESCRIBE | Keyword::DESC),
        _ => false,
    };
    match part.iter().filter(is_explain).nth(MAX_DEPTH) {
        None => Ok(()),
        Some(token) => Err(error(
            "the text has very many words EXPLAIN",
            token.span.start.line,
            token.span.start.column,
        )),
    }
}

fn parse_part(tokens: Vec<TokenWithSpan>) -> Result<DfStatement, SqlError> {
    let problem = |problem: &dyn std::fmt::Display| located(&problem.to_string());
    let mut parser = DFParserBuilder::new(tokens)
        .with_recursion_limit(PARSER_DEPTH)
        .build()
        .map_err(|failed| problem(&failed))?;
    let mut statements = parser.parse_statements().map_err(|failed| problem(&failed))?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(error("a statement has no end", 0, 0)),
    }
}

/// Take the place out of what the parser says: `… at Line: 1, Column: 8`.
fn located(message: &str) -> SqlError {
    let message = message
        .trim_start_matches("SQL error: ")
        .trim_start_matches("ParserError(\"")
        .trim_start_matches("TokenizerError(\"");
    let message = message.strip_suffix("\")").unwrap_or(message).replace("\\\"", "\"");
    if message.contains("RecursionLimitExceeded") || message.contains("recursion limit exceeded") {
        return error(format!("the query is nested deeper than {PARSER_DEPTH} brackets"), 0, 0);
    }
    let Some(at) = message.rfind(" at Line: ") else {
        return error(message, 0, 0);
    };
    let (words, place) = message.split_at(at);
    let numbers: Vec<u64> = place
        .split(|sign: char| !sign.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    match numbers[..] {
        [line, column, ..] => error(words, line, column),
        _ => error(message.clone(), 0, 0),
    }
}

/// Finds places in a text that are given by line and column, each not before the last one.
struct Places<'a> {
    text: &'a str,
    line: u64,
    line_start: usize,
}

impl<'a> Places<'a> {
    fn of(text: &'a str) -> Self {
        Self {
            text,
            line: 1,
            line_start: 0,
        }
    }

    fn offset(&mut self, line: u64, column: u64) -> usize {
        while self.line < line {
            let Some(end) = self.text[self.line_start..].find('\n') else {
                return self.text.len();
            };
            self.line_start += end + 1;
            self.line += 1;
        }
        let skip = usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
        let rest = &self.text[self.line_start..];
        let within = rest.char_indices().nth(skip).map_or(rest.len(), |(at, _)| at);
        self.line_start + within
    }
}

/// What is to be known of everything in a statement.
#[derive(Default)]
struct Survey {
    depth: usize,
    tables: Vec<String>,
    table_functions: Vec<String>,
    parameters: Vec<String>,
}

impl Survey {
    fn enter(&mut self) -> ControlFlow<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn leave(&mut self) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

fn add(names: &mut Vec<String>, name: String) {
    if !names.contains(&name) {
        names.push(name);
    }
}

impl Visitor for Survey {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        // Chains of UNION nest too, and are seen from nowhere else.
        let mut bodies = vec![(&*query.body, 1)];
        while let Some((body, depth)) = bodies.pop() {
            if let SetExpr::SetOperation { left, right, .. } = body {
                if depth > MAX_DEPTH {
                    return ControlFlow::Break(());
                }
                bodies.extend([(&**left, depth + 1), (&**right, depth + 1)]);
            }
        }
        self.enter()
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.leave()
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Value(value) = expr
            && let Value::Placeholder(name) = &value.value
        {
            add(&mut self.parameters, name.clone());
        }
        // What is taken from within a value nests in the plan.
        let steps = match expr {
            Expr::CompoundFieldAccess { access_chain, .. } => access_chain.len(),
            Expr::CompoundIdentifier(parts) => parts.len(),
            Expr::JsonAccess { path, .. } => path.path.len(),
            _ => 0,
        };
        if steps > MAX_DEPTH {
            return ControlFlow::Break(());
        }
        self.enter()
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.leave()
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let joined: usize = select.from.iter().map(|table| 1 + table.joins.len()).sum();
        if joined > MAX_JOINS {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        add(&mut self.tables, name(relation));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table {
                name: function,
                args: Some(_),
                ..
            }
            | TableFactor::Function { name: function, .. } => add(&mut self.table_functions, name(function)),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn survey(statement: &DfStatement) -> Result<Survey, SqlError> {
    let mut survey = Survey::default();
    let looked = match statement {
        DfStatement::Statement(statement) => statement.visit(&mut survey),
        DfStatement::CopyTo(copy) => match &copy.source {
            CopyToSource::Query(query) => query.visit(&mut survey),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        DfStatement::Explain(explain) => return self::survey(&explain.statement),
        DfStatement::CreateExternalTable(_) | DfStatement::Reset(_) => ControlFlow::Continue(()),
    };
    if looked.is_break() {
        let message = format!(
            "the query is nested deeper than {MAX_DEPTH} expressions or unions, or joins more than {MAX_JOINS} tables"
        );
        return Err(error(message, 0, 0));
    }
    Ok(survey)
}

fn describe(statement: &DfStatement, text: &str) -> Result<Parsed, SqlError> {
    let Survey {
        tables,
        table_functions,
        parameters,
        ..
    } = survey(statement)?;
    let what = match statement {
        DfStatement::Statement(statement) => of_sql(statement, text)?,
        DfStatement::CreateExternalTable(table) if promises_more(table) => {
            What::Other("CREATE EXTERNAL TABLE with more than columns and NOT NULL".into())
        }
        DfStatement::CreateExternalTable(table) => of_external(table),
        DfStatement::Explain(explain) => of_explain(explain, text)?,
        DfStatement::CopyTo(_) => What::Other("COPY".into()),
        DfStatement::Reset(_) => What::Other("RESET".into()),
    };
    Ok(Parsed {
        text: text.into(),
        what,
        tables,
        table_functions,
        parameters,
    })
}

fn of_explain(explain: &ExplainStatement, text: &str) -> Result<What, SqlError> {
    let inner = explain.statement.to_string();
    let inner = from_end(text, &inner);
    Ok(What::Explain {
        analyze: explain.options.analyze,
        inner: Box::new(describe(&explain.statement, &inner)?),
    })
}

/// The part of a text that a statement within it stands in, as it came if it ends the text just so.
fn from_end(text: &str, written: &str) -> String {
    let start = text
        .len()
        .checked_sub(written.len())
        .filter(|&start| text.is_char_boundary(start));
    match start.map(|start| &text[start..]) {
        Some(end) if end.eq_ignore_ascii_case(written) => end.into(),
        _ => written.into(),
    }
}

fn of_sql(statement: &SqlStatement, text: &str) -> Result<What, SqlError> {
    Ok(match statement {
        SqlStatement::Query(_) => What::Query,
        SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowVariable { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowCreate { .. }
        | SqlStatement::ExplainTable { .. } => What::Show,
        SqlStatement::Insert(insert) => {
            if asks_for_more(insert) {
                return Ok(What::Other("INSERT with more than rows for a table".into()));
            }
            let target = match &insert.table {
                TableObject::TableName(table) => name(table),
                _ => return Ok(What::Other("INSERT".into())),
            };
            let Some(source) = &insert.source else {
                return Ok(What::Other("INSERT".into()));
            };
            What::Insert {
                target,
                columns: insert.columns.iter().map(name).collect(),
                source: from_end(text, &source.to_string()),
                overwrite: insert.overwrite || insert.replace_into,
            }
        }
        SqlStatement::CreateTable(table) => match &table.query {
            Some(_) if table.temporary => What::Other("CREATE TEMPORARY TABLE".into()),
            Some(query) if table.columns.is_empty() => What::CreateTableAs {
                target: name(&table.name),
                query: from_end(text, &query.to_string()),
                or_replace: table.or_replace,
                if_not_exists: table.if_not_exists,
            },
            _ => What::Other("CREATE TABLE".into()),
        },
        SqlStatement::Drop {
            object_type: ObjectType::Table,
            names,
            if_exists,
            ..
        } if names.len() == 1 => What::DropTable {
            name: name(&names[0]),
            if_exists: *if_exists,
        },
        _ => What::Other(first_words(text)),
    })
}

/// What is done with rows that are there, or to be told of the new ones: rows are only added.
fn asks_for_more(insert: &Insert) -> bool {
    insert.or.is_some()
        || insert.ignore
        || insert.on.is_some()
        || insert.returning.is_some()
        || insert.output.is_some()
        || insert.partitioned.is_some()
}

/// What a table of values does not see to: keys, defaults, an order, an end that does not come.
fn promises_more(table: &CreateExternalTable) -> bool {
    let is_kept = |option: &ColumnOption| matches!(option, ColumnOption::Null | ColumnOption::NotNull);
    table.temporary
        || table.unbounded
        || !table.order_exprs.is_empty()
        || !table.constraints.is_empty()
        || (table.columns.iter()).any(|column| !column.options.iter().all(|given| is_kept(&given.option)))
}

fn of_external(table: &CreateExternalTable) -> What {
    let columns = table.columns.iter().map(|column| ColumnDefinition {
        name: ident(&column.name),
        sql_type: column.data_type.to_string(),
        nullable: !column
            .options
            .iter()
            .any(|option| option.option == ColumnOption::NotNull),
    });
    What::CreateExternalTable {
        name: name(&table.name),
        columns: columns.collect(),
        format: table.file_type.to_uppercase(),
        locations: table.locations.clone(),
        options: table
            .options
            .iter()
            .map(|(key, value)| (key.clone(), plain(value)))
            .collect(),
        partition_columns: table.table_partition_cols.clone(),
        or_replace: table.or_replace,
        if_not_exists: table.if_not_exists,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) | Value::EscapedStringLiteral(text) => {
            text.clone()
        }
        other => other.to_string(),
    }
}

/// A name as the engine looks for it: in small letters unless it is quoted.
fn ident(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

fn name(name: &ObjectName) -> String {
    let mut whole = String::new();
    for (number, part) in name.0.iter().enumerate() {
        let dot = if number > 0 { "." } else { "" };
        let part = part.as_ident().map_or_else(|| part.to_string(), ident);
        let _ = write!(whole, "{dot}{part}");
    }
    whole
}

fn first_words(text: &str) -> String {
    let words = text.split_whitespace().take(2).map(str::to_uppercase);
    let words: Vec<String> = words.take_while(|word| word.chars().all(char::is_alphabetic)).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Parsed {
        let mut found = parse(text).unwrap();
        assert_eq!(found.len(), 1);
        found.pop().unwrap()
    }

    #[test]
    fn statements_are_told_apart() {
        let found = parse("SELECT 1 ; -- a note\n VALUES (1, $2);\n;SHOW TABLES").unwrap();
        let texts: Vec<&str> = found.iter().map(|statement| &statement.text[..]).collect();
        assert_eq!(texts, ["SELECT 1", "VALUES (1, $2)", "SHOW TABLES"]);
        assert_eq!(found[1].parameters, ["$2"]);
        assert_eq!(found[2].what, What::Show);
    }

    #[test]
    fn inserts_name_their_target_and_their_source() {
        let found = one("insert into \"Big\".t (A, \"B\") select a, b from kv where é = 1");
        let What::Insert {
            target,
            columns,
            source,
            overwrite: false,
        } = found.what
        else {
            panic!("no insert")
        };
        assert_eq!(
            (target.as_str(), &columns[..]),
            ("Big.t", &["a".to_string(), "B".into()][..])
        );
        assert_eq!(source, "select a, b from kv where é = 1");
        assert!(found.tables.contains(&"kv".to_string()));
    }

    #[test]
    fn external_tables_have_their_parts() {
        let found = one(
            "CREATE OR REPLACE EXTERNAL TABLE t (a BIGINT NOT NULL, b VARCHAR) STORED AS parquet LOCATION '/data/t/' \
             OPTIONS ('on_error' 'skip')",
        );
        let What::CreateExternalTable {
            columns,
            format,
            locations,
            options,
            or_replace: true,
            ..
        } = found.what
        else {
            panic!("no table")
        };
        assert_eq!((columns[0].nullable, columns[1].nullable), (false, true));
        assert_eq!((format.as_str(), locations[0].as_str()), ("PARQUET", "/data/t/"));
        assert!(options[0].0.ends_with("on_error") && options[0].1 == "skip");
    }

    #[test]
    fn other_kinds_are_named() {
        assert!(matches!(
            one("DROP TABLE IF EXISTS t").what,
            What::DropTable { if_exists: true, .. }
        ));
        assert!(matches!(
            one("CREATE TABLE t AS SELECT 1").what,
            What::CreateTableAs { .. }
        ));
        assert!(matches!(
            one("EXPLAIN ANALYZE SELECT 1").what,
            What::Explain { analyze: true, .. }
        ));
        assert_eq!(one("SET a = 1").what, What::Other("SET A".into()));
        assert_eq!(one("COPY t TO '/tmp/x'").what, What::Other("COPY".into()));
        assert_eq!(one("DELETE FROM t").what, What::Other("DELETE FROM".into()));
        assert_eq!(
            one("SELECT * FROM read_csv('/etc/passwd')").table_functions,
            ["read_csv"]
        );
    }

    #[test]
    fn what_would_be_left_undone_is_no_statement_of_its_kind() {
        for text in [
            "INSERT OR REPLACE INTO t VALUES (1)",
            "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING",
            "INSERT INTO t SELECT 1 RETURNING a",
            "CREATE TEMPORARY TABLE t AS SELECT 1",
            "CREATE UNBOUNDED EXTERNAL TABLE t (a INT) STORED AS JSON LOCATION '/data/t/'",
            "CREATE EXTERNAL TABLE t (a INT) STORED AS JSON WITH ORDER (a ASC) LOCATION '/data/t/'",
            "CREATE EXTERNAL TABLE t (a INT PRIMARY KEY) STORED AS JSON LOCATION '/data/t/'",
            "CREATE EXTERNAL TABLE t (a INT DEFAULT 3) STORED AS JSON LOCATION '/data/t/'",
            "CREATE EXTERNAL TABLE t (a INT, PRIMARY KEY (a)) STORED AS JSON LOCATION '/data/t/'",
        ] {
            assert!(matches!(one(text).what, What::Other(_)), "{text}");
        }
    }

    #[test]
    fn errors_say_where() {
        let failed = parse("SELECT 1;\nSELECT * FORM kv WHERE").unwrap_err();
        assert_eq!(failed.line, 2);
        assert!(failed.column > 1, "{failed:?}");
        assert!(parse("SELECT 'open").unwrap_err().line == 1);
    }

    #[test]
    fn nesting_is_refused_without_a_fall() {
        for text in [
            format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
            format!("SELECT 1{}", "+1".repeat(500_000)),
            format!("SELECT {}1", "NOT ".repeat(200_000)),
            format!("SELECT {}1", "- ".repeat(500_000)),
            format!("SELECT 1{}", " OR true".repeat(100_000)),
            format!("SELECT 1 {}", "UNION ALL SELECT 1 ".repeat(50_000)),
            format!("SELECT a{}", "[1]".repeat(300_000)),
            format!("SELECT a{}", "::int".repeat(200_000)),
        ] {
            let text = &text[..text.len().min(MAX_TEXT_BYTES)];
            let _ = parse(text);
        }
        assert!(parse(&format!("SELECT 1{}", "+1".repeat(1_000))).is_err());
        assert!(parse(&"x".repeat(MAX_TEXT_BYTES + 1)).is_err());
    }

    #[test]
    fn long_lists_are_no_nesting() {
        let list: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
        assert!(parse(&format!("SELECT 1 WHERE 1 IN ({})", list.join(","))).is_ok());
    }
}
