-- A library that knows version 1 may go on using the schema: it takes an instance that was imported as any other.
INSERT INTO {schema}.schema_info VALUES (6, 1);

-- The epoch under which an instance was imported. While it is the instance's own, nobody has taken it here since, and it may be imported again.
ALTER TABLE {schema}.instances ADD COLUMN imported_at_epoch bigint NOT NULL DEFAULT 0;

-- As before; an instance that begins with an import was not paired here, nor was one that somebody has put in by hand.
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

-- As before, and that all of an instance was copied by who looked at it only.
CREATE OR REPLACE FUNCTION {schema}.audit_note(of text, event text, detail text)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i record;
BEGIN
    IF event NOT IN ('set_aside', 'rotated', 'imported', 'exported', 'copied', 'erased') THEN
        RAISE 'no such event' USING ERRCODE = '22023';
    END IF;
    SELECT * INTO i FROM {schema}.instances WHERE id = of;
    RETURN {schema}.audit_append(of, event, i.epoch, i.seq, coalesce(i.owner, ''), detail);
END $$;

-- What is left of an instance's trail when all of it is erased: that it was, under the number that follows and sealing the hash that was the last, so that a head
-- that somebody has kept still fits. Key ids and hashes of values go: they may be phone numbers, and tell whether a value that is guessed was there.
CREATE FUNCTION {schema}.audit_erase(of text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head record;
BEGIN
    IF EXISTS (SELECT FROM {schema}.instances WHERE id = of) THEN
        RAISE 'the instance is still there' USING ERRCODE = '22023';
    END IF;
    SELECT h.n, h.hash INTO head FROM {schema}.audit_heads h WHERE h.instance_id = of FOR UPDATE;
    IF FOUND THEN
        DELETE FROM {schema}.audit_keys WHERE instance_id = of;
        DELETE FROM {schema}.audit WHERE instance_id = of;
        DELETE FROM {schema}.audit_anchors WHERE instance_id = of;
        INSERT INTO {schema}.audit_anchors (instance_id, n, hash) VALUES (of, head.n, head.hash);
    END IF;
    RETURN {schema}.audit_append(of, 'erased', NULL, NULL, '', '');
END $$;
REVOKE EXECUTE ON FUNCTION {schema}.audit_erase FROM PUBLIC;
