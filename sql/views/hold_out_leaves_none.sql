-- hold_out_leaves_none(hold_out, domains, corpus): what to say when every misaligned scorer of a gap is held out, null otherwise.
-- `domains` has one entry for each misaligned scorer that would share the gap, null for one without a domain, which stays.
-- Units: none, names alone.
create or replace macro hold_out_leaves_none(hold_out, domains, corpus) as
    case
        when
            list_count(hold_out) > 0 and len(domains) > 0
            and len([domain for domain in domains if not coalesce(list_contains(hold_out, domain), false)]) = 0
            then
                'hold_out [' || array_to_string(hold_out, ', ') || '] leaves no misaligned scorer of corpus ' || corpus
                || '; their domains: ' || array_to_string(list_sort(list_distinct(domains)), ', ')
                || '. Score one tuned on another domain, or hold out less'
    end
