-- One row is one distinct conversation of a corpus.
-- Units: n_turns and n_assistant_turns count messages, n_chars characters, n_copies kept records with this very
-- conversation; source and file are those of the record that first brought it. Labels are null where the corpus has none. Key: corpus, example_id.
create or replace view examples as
with copies as (
    select corpus, example_id, count(*) as n_copies, min_by(source, (ingest, record)) as source,
        min_by(file, (ingest, record)) as file
    from sources
    group by corpus, example_id
)
select
    parts.corpus, parts.example_id, parts.messages, parts.n_turns, parts.n_assistant_turns, parts.n_chars,
    parts.response_head, parts.domain, parts.language, parts.license, parts.harm, copies.source, copies.file,
    copies.n_copies
from example_parts as parts
left join copies on copies.corpus = parts.corpus and copies.example_id = parts.example_id
