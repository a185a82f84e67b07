-- Whoever could use the schema may go on: what the library makes and deletes is marked since version 5. Where there are data keys older ones may not (version 7).
INSERT INTO {schema}.schema_info SELECT 8, max(usable_from) FROM {schema}.schema_info;

-- As before; an instance that somebody has put in by hand was not paired here either.
CREATE OR REPLACE FUNCTION {schema}.audit_life() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    who record := CASE TG_OP WHEN 'DELETE' THEN old ELSE new END;
    event text;
    detail text := '';
BEGIN
    IF TG_OP = 'INSERT' THEN
        event := CASE WHEN new.imported_at_epoch = new.epoch THEN 'imported' ELSE 'paired' END;
        detail := concat_ws(', ', new.jid, nullif({schema}.audit_writer(), ''));
    ELSIF TG_OP = 'DELETE' THEN
        event := 'deleted';
        detail := {schema}.audit_writer();
    ELSIF new.seq < old.seq OR new.epoch < old.epoch OR new.step_through < old.step_through OR new.abandon_through < old.abandon_through OR new.id <> old.id THEN
        event := 'lowered'; -- which the library never does
        detail := format('epoch %s, seq %s, step_through %s, abandon_through %s', old.epoch, old.seq, old.step_through, old.abandon_through);
    ELSIF new.epoch <> old.epoch THEN
        event := CASE WHEN new.imported_at_epoch = new.epoch THEN 'imported' WHEN new.abandon_through > old.abandon_through THEN 'rewound' ELSE 'taken' END;
        detail := CASE WHEN old.clean_at_epoch = old.epoch THEN 'after a release' ELSE 'by force, from ' || old.owner END
            || CASE WHEN new.timeline <> old.timeline THEN ', timeline ' || old.timeline || ' to ' || new.timeline ELSE '' END;
    ELSE
        event := 'released';
    END IF;
    PERFORM {schema}.audit_append(who.id, event, who.epoch, who.seq, who.owner, detail);
    RETURN NULL;
END $$;

-- For a flush that puts what is not there yet: whether an instance has the key under which a row is, so that it can be read unless somebody has changed it.
CREATE FUNCTION {schema}.sealed_by_data_key(of text, sealed text) RETURNS bool LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT FROM {schema}.data_keys k WHERE k.instance_id = of AND starts_with(sealed, k.id));
END $$;
