"""Which statements strangers may run: one SELECT over the documented views, checked by its syntax tree.

DuckDB calls `with x as (insert ...) select` a SELECT too, so the tree is walked: only known kinds of nodes pass, only
the product's views (and the statement's own CTEs) may be read, and only listed functions may be called. Every other
function of DuckDB is refused, so that one of a later version is refused until somebody has looked at it:
tests/golden/sql_refused_functions.txt has the refused ones of this version, and a test names what is in neither list.
Refused are functions that tell of the process, its settings and catalogue, those that change a state (a sequence, the
seed of `random`, the log), those that parse or run statements, and DuckDB's own helpers.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import orjson

import sql
from curator.errors import BadInputError

_OPERATORS = "!= !__postfix !~~ !~~* % & && * ** + - ->> / // < <-> << <= <=> <@ = > >= >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~"
# The parser's own names, which duckdb_functions() does not list, and the function that the views bring along.
PARSED = frozenset({"unnest", "grouping", "->", "is_refusal"})
_NAMES = """
    __between __cast abs acos acosh add age aggregate ago alias any_value apply approx_count_distinct
    approx_quantile approx_top_k arbitrary arg_max arg_max_null arg_max_nulls_last arg_min arg_min_null
    arg_min_nulls_last argmax argmin array_agg array_aggr array_aggregate array_append array_apply array_cat
    array_concat array_contains array_cosine_distance array_cosine_similarity array_cross_product array_distance
    array_distinct array_dot_product array_extract array_filter array_grade_up array_has array_has_all array_has_any
    array_indexof array_inner_product array_intersect array_length array_negative_dot_product
    array_negative_inner_product array_pop_back array_pop_front array_position array_prepend array_push_back
    array_push_front array_reduce array_resize array_reverse array_reverse_sort array_select array_slice array_sort
    array_to_json array_to_string array_transform array_unique array_value array_where array_zip ascii asin asinh
    atan atan2 atanh avg bar base64 bin binom bit_and bit_count bit_length bit_or bit_position bit_xor bitstring
    bitstring_agg bool_and bool_or cardinality cbrt ceil ceiling century char_length character_length chr concat
    concat_ws contains corr cos cosh cot count count_if count_star countif covar_pop covar_samp cume_dist
    current_date current_localtime current_localtimestamp damerau_levenshtein date_add date_diff date_part date_sub
    date_trunc datediff datepart datesub datetrunc day dayname dayofmonth dayofweek dayofyear days_in_month decade
    decimal_average decode degrees dense_rank divide editdist3 element_at encode ends_with entropy enum_first
    enum_last enum_range enum_range_boundary epoch epoch_ms epoch_ns epoch_us equi_width_bins era even exp factorial
    favg fdiv fill filter first first_value flatten floor fmod format format_bytes formatreadabledecimalsize
    formatreadablesize from_base64 from_binary from_hex from_json from_json_strict fsum gamma gcd gen_random_uuid
    generate_series generate_subscripts geomean geometric_mean get_bit get_current_time get_current_timestamp
    grade_up greatest greatest_common_divisor group_concat hamming hash hex histogram histogram_exact hour if
    ilike_escape instr isfinite isinf isnan isodow isoyear jaccard jaro_similarity jaro_winkler_similarity json
    json_array json_array_length json_contains json_deep_merge json_exists json_extract json_extract_path
    json_extract_path_text json_extract_string json_group_array json_group_object json_group_structure json_insert
    json_keys json_merge_patch json_merge_patch_diff json_normalize json_object json_pretty json_quote json_remove
    json_replace json_set json_strip_nulls json_structure json_transform json_transform_strict json_type json_valid
    json_value julian kahan_sum kurtosis kurtosis_pop lag last last_day last_value lcase lcm lead least
    least_common_multiple left left_grapheme len length length_grapheme levenshtein lgamma like_escape list
    list_aggr list_aggregate list_any_value list_append list_apply list_approx_count_distinct list_avg list_bit_and
    list_bit_or list_bit_xor list_bool_and list_bool_or list_cat list_concat list_contains list_cosine_distance
    list_cosine_similarity list_count list_distance list_distinct list_dot_product list_element list_entropy
    list_extract list_filter list_first list_grade_up list_has list_has_all list_has_any list_histogram list_indexof
    list_inner_product list_intersect list_kurtosis list_kurtosis_pop list_last list_mad list_max list_median
    list_min list_mode list_negative_dot_product list_negative_inner_product list_pack list_position list_prepend
    list_product list_reduce list_resize list_reverse list_reverse_sort list_select list_sem list_skewness
    list_slice list_sort list_stddev_pop list_stddev_samp list_string_agg list_sum list_transform list_unique
    list_value list_var_pop list_var_samp list_where list_zip listagg ln log log10 log2 lower lpad ltrim lttb mad
    make_date make_time make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz map map_concat
    map_contains map_contains_entry map_contains_value map_entries map_extract map_extract_value map_from_entries
    map_keys map_values max max_by md5 md5_number md5_number_lower md5_number_upper mean median microsecond
    millennium millisecond min min_by minute mismatches mod mode month monthname multiply nanosecond nextafter
    nfc_normalize normalized_interval not_ilike_escape not_like_escape now nth_value ntile nullif octet_length ord
    overlay parse_dirname parse_dirpath parse_filename parse_formatted_bytes parse_path path_join percent_rank pi
    position pow power prefix printf product quantile quantile_cont quantile_disc quarter radians random range rank
    rank_dense reduce regexp_escape regexp_extract regexp_extract_all regexp_full_match regexp_matches
    regexp_replace regexp_split_to_array regexp_split_to_table regr_avgx regr_avgy regr_count regr_intercept regr_r2
    regr_slope regr_sxx regr_sxy regr_syy repeat replace reservoir_quantile reverse right right_grapheme round
    round_even roundbankers row row_number row_to_json rpad rtrim second sem set_bit sha1 sha256 sign signbit sin
    sinh skewness split split_part sqrt starts_with stddev stddev_pop stddev_samp str_split str_split_regex strftime
    string_agg string_split string_split_regex string_to_array strip_accents strlen strpos strptime struct_concat
    struct_contains struct_extract struct_extract_at struct_has struct_indexof struct_insert struct_keys struct_pack
    struct_position struct_update struct_values substr substring substring_grapheme subtract suffix sum
    sum_no_overflow sumkahan switch tan tanh time_bucket timezone timezone_hour timezone_minute to_base to_base64
    to_binary to_centuries to_days to_decades to_hex to_hours to_json to_microseconds to_millennia to_milliseconds
    to_minutes to_months to_quarters to_seconds to_timestamp to_weeks to_years today transaction_timestamp translate
    trim trunc try_strptime typeof ucase unbin unhex unicode union_extract union_tag union_value unpivot_list upper
    url_decode url_encode uuid uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7 var_pop var_samp variance
    variant_array_length variant_contains variant_exists variant_extract variant_extract_string variant_group_array
    variant_group_object variant_keys variant_type variant_typeof wavg week weekday weekofyear weighted_avg xor year
    yearweek
"""
NAMED, OPERATORS = frozenset(_NAMES.split()), frozenset(_OPERATORS.split())
# DuckDB answers these where no column has the name: a reference for the parser, a call for the binder.
VALUE_NAMES = frozenset(
    {
        *("current_catalog", "current_database", "current_role", "current_schema"),
        *("current_user", "session_user", "system_user", "user"),
    }
)
MAX_STATEMENT_CHARS = 50_000
MAX_DEPTH = 400
TABLES = frozenset({"corpora", *(name for name in sql.VIEWS if name not in sql.MACROS)})
TABLE_FUNCTIONS = frozenset({"gap_rows", "unnest", "range", "generate_series"})
FUNCTIONS = (
    OPERATORS | PARSED | NAMED | TABLE_FUNCTIONS | set(sql.MACROS)
)  # the call of a table function is a function's node too
_NODES = frozenset(
    {
        *("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"),
        *("BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST", "PIVOT"),
        *("ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER"),
        *("ORDER_DEFAULT", "ASCENDING", "DESCENDING"),
    }
)
_EXPRESSIONS = frozenset(
    {
        *("CONSTANT", "COLUMN_REF", "FUNCTION", "COMPARISON", "CONJUNCTION", "CASE", "CAST", "OPERATOR", "SUBQUERY"),
        *("STAR", "WINDOW", "LAMBDA", "LAMBDA_REF", "BETWEEN", "COLLATE", "PARAMETER", "POSITIONAL_REFERENCE"),
        "TYPE",
    }
)
_CTE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_SET_ADVICE = re.compile(r' Use "SET [^"]*"[^.]*\.')
_SKIPPED = frozenset({"literal", "cast_type", "qualified_name"})


def kind_of(statement: duckdb.Statement) -> str:
    """The kind of a statement as DuckDB's Python package names it, which has no name for some of the parser's."""
    try:
        return str(statement.type.name)
    except ValueError:  # UPDATE EXTENSIONS in DuckDB 2
        return "a statement of another kind"


def kinds_of(statements: Sequence[duckdb.Statement]) -> str:
    """The kinds of some statements, with the way to write the one that DuckDB splits in several."""
    kinds = ", ".join(map(kind_of, statements)) or "nothing"
    if "MULTI" in kinds:
        return (
            f"{kinds}: a PIVOT inside a statement needs its values, as in PIVOT gap ON domain IN ('a', 'b') USING "
            "avg(gap_abs)"
        )
    return kinds


def reason_of(error: Exception) -> str:
    """What DuckDB says about a failed statement, without its advice to change a setting, which is refused here."""
    return _SET_ADVICE.sub("", str(error))


def check_statement(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Pass a statement, or raise BadInputError saying what it may not do."""
    if len(statement) > MAX_STATEMENT_CHARS or "\0" in statement:
        raise BadInputError(f"the statement has a NUL or more than {MAX_STATEMENT_CHARS} characters")
    try:
        found = connection.extract_statements(statement)
        if [kind_of(item) for item in found] != ["SELECT"]:
            raise BadInputError(f"give exactly one SELECT statement; found {kinds_of(found)}")
        row = connection.execute("select json_serialize_sql($text::varchar)", {"text": found[0].query}).fetchone()
    except duckdb.Error as error:
        raise BadInputError(f"the statement failed: {reason_of(error)[:2000]}") from error
    try:
        tree: dict[str, Any] = orjson.loads(row[0]) if row else {"error": True}
    except orjson.JSONDecodeError as error:  # nested beyond what the decoder takes
        raise BadInputError("the statement is nested too deeply") from error
    if tree["error"] or len(tree["statements"]) != 1:
        raise BadInputError("only a SELECT that reads is run here")
    nodes = list(_walk(tree["statements"][0]))
    names = {str(item["key"]).lower() for node in nodes for item in _ctes(node)}
    _check_ctes(connection, names)
    for node in nodes:
        _check_node(node, names)


def _walk(root: Any) -> Iterator[dict[str, Any]]:
    """Every object of the tree; raises BadInputError beyond the depth that is taken."""
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise BadInputError("the statement is nested too deeply")
        if isinstance(item, dict):
            yield item
            stack.extend((value, depth + 1) for key, value in item.items() if key not in _SKIPPED)
        elif isinstance(item, list):
            stack.extend((value, depth + 1) for value in item)


def _ctes(node: dict[str, Any]) -> list[dict[str, Any]]:
    found = node.get("cte_map")
    return list(found.get("map", [])) if isinstance(found, dict) else []


def _check_ctes(connection: duckdb.DuckDBPyConnection, names: set[str]) -> None:
    """Refuse a CTE named like a table: outside its own scope that name would read the real one."""
    rows = connection.execute("select view_name from duckdb_views() union select table_name from duckdb_tables()")
    taken = {str(name).lower() for (name,) in rows.fetchall()}
    for name in sorted(names):
        if name in taken or not _CTE_NAME.fullmatch(name):
            raise BadInputError(f"{name!r} cannot name a CTE here: use letters, digits and _, and no table's name")


def _check_node(node: dict[str, Any], ctes: set[str]) -> None:
    kind, group = node.get("type"), node.get("class")
    if group is not None:
        if group not in _EXPRESSIONS:
            raise BadInputError(f"{str(group).lower()} expressions are not run here")
    elif isinstance(kind, str) and kind not in _NODES:
        raise BadInputError(f"{kind.lower().replace('_', ' ')} is not run here: only a SELECT that reads the views")
    if node.get("pivot_enum"):
        raise BadInputError("a PIVOT takes its values from a list here, and not from a type")
    if group == "COLUMN_REF" and len(node.get("column_names", ())) == 1:
        _check_name(str(node["column_names"][0]).lower())
    if group is None and kind == "BASE_TABLE":
        _check_table(node, ctes)
    elif group in ("FUNCTION", "WINDOW") and "function_name" in node:
        _check_function(node)
    elif group is None and kind == "TABLE_FUNCTION":
        call = node.get("function") or {}
        name = str(call.get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            raise BadInputError(f"{name}() is not called here; there are: {', '.join(sorted(TABLE_FUNCTIONS))}")


def _check_name(name: str) -> None:
    if name in VALUE_NAMES:
        raise BadInputError(f"{name} is not answered here: a column of that name needs its table's name before it")


def _check_table(node: dict[str, Any], ctes: set[str]) -> None:
    name = str(node.get("table_name", "")).lower()
    qualified = bool(node.get("schema_name") or node.get("catalog_name"))
    if qualified or (name not in TABLES and name not in ctes):
        raise BadInputError(f"{name!r} is not read here; there are: {', '.join(sorted(TABLES))}, gap_rows(...)")


def _check_function(node: dict[str, Any]) -> None:
    name = str(node["function_name"]).lower()
    if node.get("schema") or node.get("catalog") or name not in FUNCTIONS:
        raise BadInputError(f"{name}() is not called here: it is none of the functions that compute with values")
